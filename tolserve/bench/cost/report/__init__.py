"""The page of `bench cost`: one HTML file with nothing outside of it. `page` puts it together, `svg` draws."""
