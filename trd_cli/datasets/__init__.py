"""Where problem sets come from: a generator of arithmetic word problems, and files or Hub datasets of others."""
