"""Training data: a module for each format of a data set, and the training folder that is made of them."""
