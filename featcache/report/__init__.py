"""The report page: figures and plots of one job as a single HTML file."""
