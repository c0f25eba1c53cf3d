"""The report of a run as one page: what its workdir says, in curves, pictures and words."""
