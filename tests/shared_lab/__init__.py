"""On one lab that all files share, in the order of their numbers: `test_1_lab.py` expects one that has just come up."""
