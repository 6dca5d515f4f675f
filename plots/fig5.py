"""Draw Figure 5: python plots/fig5.py [RESULTS [OUT]]."""

from script import main

from ionn.evaluation.figures import fig5

if __name__ == "__main__":
    main(fig5)
