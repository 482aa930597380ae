"""Why an agent does not learn: what usually goes wrong, measured, each with its cure."""
