"""From a source and annotators to committed units: plan, unit, executors, report."""
