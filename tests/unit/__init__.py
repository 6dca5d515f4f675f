"""Tests of single parts; few of them need Caffe or another process."""
