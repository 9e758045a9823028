"""Building blocks of the networks; linears never communicate."""
