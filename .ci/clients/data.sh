#!/bin/sh
# The data set that every client sends: 400 lines, from 3 bytes to 6 KB, the same on every machine.
# usage: data.sh STATE_DIR
set -eu
awk 'BEGIN {
    x = 12345
    for (i = 0; i < 400; i++) {
        size = i % 50 == 49 ? 6000 : i % 10 == 9 ? 900 : i % 60
        line = "r" i ":"
        while (length(line) < size) {
            x = (x * 1103 + 12347) % 1048573
            line = line sprintf("%c%d.", 97 + x % 26, x)
        }
        print line
    }
}' > "$1/lines.txt"
