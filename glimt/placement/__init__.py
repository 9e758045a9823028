"""Ray as one that places: finds machines for ranks and copies, and starts there what a user would
have typed there.
"""
