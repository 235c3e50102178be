// ACPI table that gives a QEMU guest P-states (acpi-cpufreq over a serial scratch register) and C-states C1/C2/C3.
// run.py compiles it with iasl (Debian package acpica-tools).
// All C-states are of type 1: for the types 2 and 3 the kernel takes the TSC to halt in them
// (drivers/acpi/processor_idle.c, tsc_check_state) and reads the HPET, which the emulator does
// slowly and on one CPU at a time. Names and latencies, by which the governor goes, are the same.
DefinitionBlock ("ssdt.aml", "SSDT", 2, "AGTTOP", "CPUPM", 1)
{
  External (\_SB.CPUS.C000, DeviceObj)
  External (\_SB.CPUS.C001, DeviceObj)
  Scope (\_SB.CPUS.C000) {
    Name (_PPC, 0)
    Name (_PCT, Package(){ ResourceTemplate(){Register(SystemIO,8,0,0x3EF)}, ResourceTemplate(){Register(SystemIO,8,0,0x3EF)} })
    Name (_PSS, Package(){
      Package(){3000, 20000, 10, 10, 0x1E, 0x1E},
      Package(){2000, 12000, 10, 10, 0x14, 0x14},
      Package(){1200,  7000, 10, 10, 0x0C, 0x0C},
      Package(){ 800,  4000, 10, 10, 0x08, 0x08} })
    Name (_CST, Package(){ 3,
      Package(){ ResourceTemplate(){Register(FFixedHW,0,0,0)}, 1, 2, 1000},
      Package(){ ResourceTemplate(){Register(SystemIO,8,0,0x3EE)}, 1, 100, 500},
      Package(){ ResourceTemplate(){Register(SystemIO,8,0,0x3EE)}, 1, 300, 100} })
  }
  Scope (\_SB.CPUS.C001) {
    Name (_PPC, 0)
    Name (_PCT, Package(){ ResourceTemplate(){Register(SystemIO,8,0,0x2EF)}, ResourceTemplate(){Register(SystemIO,8,0,0x2EF)} })
    Name (_PSS, Package(){
      Package(){3000, 20000, 10, 10, 0x1E, 0x1E},
      Package(){2000, 12000, 10, 10, 0x14, 0x14},
      Package(){1200,  7000, 10, 10, 0x0C, 0x0C},
      Package(){ 800,  4000, 10, 10, 0x08, 0x08} })
    Name (_CST, Package(){ 3,
      Package(){ ResourceTemplate(){Register(FFixedHW,0,0,0)}, 1, 2, 1000},
      Package(){ ResourceTemplate(){Register(SystemIO,8,0,0x2EE)}, 1, 100, 500},
      Package(){ ResourceTemplate(){Register(SystemIO,8,0,0x2EE)}, 1, 300, 100} })
  }
}
