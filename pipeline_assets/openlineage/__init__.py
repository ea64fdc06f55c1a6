"""What runs tell of the data that they read and write, as OpenLineage events; an option of the installation."""
