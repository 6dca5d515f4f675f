"""The paper's experiment on Inception, live: python bench/inception.py --runs 3"""

from per_model import main

main("inception")
