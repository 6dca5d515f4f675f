"""Planning: from a network and costs to partitions in upload order, as pure computation without Caffe or sockets."""
