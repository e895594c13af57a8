"""The book's machinery: parameters of chapters, stored results, figures, and the command that runs
chapters.
"""
