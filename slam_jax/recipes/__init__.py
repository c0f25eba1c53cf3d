"""What a run does: train a teacher, distil a student, prepare data, plan, look again."""
