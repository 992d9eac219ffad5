mod addresses;
mod calls;
