"""What travels between client and server: parameters of a request, statistics of a token, packed arrays.

Needs neither torch nor SGLang.
"""
