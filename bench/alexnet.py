"""The paper's experiment on AlexNet, live: python bench/alexnet.py --runs 3"""

from per_model import main

main("alexnet")
