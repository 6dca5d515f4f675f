"""Networks as Caffe lists them: layers, stages, weights, partial nets, and Caffe itself, which runs them."""
