"""From images to a run: the network, its losses, the data and the training loop."""
