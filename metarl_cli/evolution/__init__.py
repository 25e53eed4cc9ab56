"""Evolution of learners: genomes, the lifetimes in which individuals learn, and searches over populations."""
