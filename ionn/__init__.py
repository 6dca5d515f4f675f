"""ionn: plan which layers of a Caffe model to upload to an edge server first, and offload what has arrived."""
