"""What `unrolled top` is made of: pages of metrics, what changed between two, and how it looks.

scrape    a metrics endpoint's page, as samples; what they rose by from one page to the next
figures   what those mean: rates, shares, quantiles; no text
watch     one page after another, through outages and restarts of the server
view      figures as something that rich can draw, as wide as there is room

Needs the extra `top`.
"""
