"""A ROS 2 node that classifies camera images with a mate-edge bundle."""
