"""The paper's experiment on MobileNet, live: python bench/mobilenet.py --runs 3"""

from per_model import main

main("mobilenet")
