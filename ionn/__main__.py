from ionn.cli import main

main()
