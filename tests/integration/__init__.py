"""Tests of parts together: real Caffe, real sockets, real processes."""
