"""Top floor: analyses that combine model adapters and interventions into tables and figures."""
