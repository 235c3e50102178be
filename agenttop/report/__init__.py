"""``agenttop report``: the open questions about agents' tails, answered from blocks of time.

``blocks`` cuts the Samples into blocks, ``estimate`` makes figures with
intervals of them, ``questions/`` has a file per question, ``pages/`` one per
format.
"""
