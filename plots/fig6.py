"""Draw Figure 6: python plots/fig6.py [RESULTS [OUT]]."""

from script import main

from ionn.evaluation.figures import fig6

if __name__ == "__main__":
    main(fig6)
