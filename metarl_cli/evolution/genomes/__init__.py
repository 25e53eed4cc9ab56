"""What varies from individual to individual: the parts of a genome."""
