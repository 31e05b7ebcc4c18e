"""The four services of Sealcomb and the code that two or more of them share."""
