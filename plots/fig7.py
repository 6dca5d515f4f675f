"""Draw Figure 7: python plots/fig7.py [RESULTS [OUT]]."""

from script import main

from ionn.evaluation.figures import fig7

if __name__ == "__main__":
    main(fig7)
