"""A family of tasks for metarl: boats that drift, each with its rudder askew."""
