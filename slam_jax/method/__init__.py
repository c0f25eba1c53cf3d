"""The method as mathematics: schedule, solver, consistency function, SLAM, samplers. Arrays and
functions only.
"""
