"""Where the tools of formats live: environments, npm packages, programs that are spoken to by pipe."""
