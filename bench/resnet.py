"""The paper's experiment on ResNet, live: python bench/resnet.py --runs 3"""

from per_model import main

main("resnet")
