module blockring

go 1.19
