"""What a run distils: its teacher, its data, its pictures and report, its export.

job.py             the interface that the command line drives
digits.py          handwritten digits, whose teacher is trained here (digits_teacher.py)
text_to_image.py   Stable Diffusion teachers
"""
