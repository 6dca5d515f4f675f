"""Networks: their layers, stages and weights, their partial nets, and Caffe itself, which computes them."""
