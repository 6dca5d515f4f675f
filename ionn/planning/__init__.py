"""From a network and costs to partitions in upload order. Numbers in, a plan out: no Caffe, no sockets, no clock."""
