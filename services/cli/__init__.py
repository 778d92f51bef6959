"""The console command, one file per group of commands; heavy libraries load only when a command needs them."""
