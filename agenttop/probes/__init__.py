"""The looks at the machine that doctor.py puts together; none of them changes anything."""
