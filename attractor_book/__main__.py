"""python -m attractor_book is the command attractor-book."""

from attractor_book.command import main

main()
