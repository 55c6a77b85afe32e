"""`mate-edge bench`: what a bundle takes on this device, measured, judged and kept."""
