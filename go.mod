module github.com/carme-hpc/carme

go 1.26
