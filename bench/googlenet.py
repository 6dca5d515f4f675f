"""The paper's experiment on GoogLeNet, live: python bench/googlenet.py --runs 3"""

from per_model import main

main("googlenet")
