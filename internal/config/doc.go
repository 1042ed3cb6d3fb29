// Package config reads what the admin decides for the jobs of a node:
// /etc/carme/spank.yaml, the image catalogue /etc/carme/images.d/*.yaml and the
// app descriptions /etc/carme/apps.d/*.yaml.
//
// Decoding is strict and reports everything that is wrong at once, with file
// and line. Files that somebody other than root could have written are refused.
package config
