//! On a cluster: how to build and start a program there, and what to do if it does not start, hangs, or
//! is slow.
//!
//! Clusters differ. Names of modules and partitions, and what the scheduler's launcher can start, depend
//! on the site: those places are marked with *site*, and its documentation has the answer. What is said of
//! Slurm was tried with Slurm 22.05, Open MPI 4.1.4, MPICH 4.0.2 and Intel MPI 2021.19 on one machine, also
//! as two nodes of Slurm; what is said of PBS, Cray and containers follows their documentation.
//!
//! In short, on a cluster with Slurm:
//!
//! ```sh
//! module load openmpi                             # site: the name, and a compiler that goes with it
//! export LIBTORCH=$HOME/libtorch
//! cargo build --release
//! srun --mpi=pmix --kill-on-bad-exit=1 --ntasks=4 --cpus-per-task=8 target/release/my-program
//! ```
//!
//! # A first program
//!
//! It shows whether the ranks form one world, on which nodes they are, how many threads each has, and
//! which MPI is loaded:
//!
//! ```
#![doc = include_str!("cluster/program.rs")]
//! ```
//!
//! # Building
//!
//! ## Modules, and which MPI
//!
//! Load the modules of an MPI and of a compiler that its site built it with, and then build: the build
//! takes the MPI that the `mpiexec` on `PATH` belongs to, or the first that it finds if there is no
//! `mpiexec` on `PATH`, as where only `srun` starts programs. These settings choose another one:
//!
//! | setting | what is taken |
//! | --- | --- |
//! | `MPI4TCH_MPI=openmpi` or `mpich` | an MPI of this family; of several, the one of `mpiexec` |
//! | `MPI4TCH_MPI=/opt/mpi/4.1` | the one in this folder, with `bin/mpicc` or `include/mpi.h` and `lib/`. The path must be absolute |
//! | `MPICC=/opt/mpi/bin/mpicc` | the one that this compiler wrapper belongs to, by what it prints with `-show` |
//!
//! MVAPICH, Intel MPI and Cray MPICH are of the family of MPICH; Intel MPI has been tried, the
//! other two have not. With Cray's compilers, whose `cc` prints no flags for `-show`, give the folder:
//! `MPI4TCH_MPI=$CRAY_MPICH_DIR`. An error of the build lists every place that was asked, with its answer.
//! A change of these settings, or of `PATH`, makes the next `cargo build` ask again.
//!
//! The build also needs a C++ compiler for C++17, and libclang (*site*: often the module `llvm` or
//! `clang`). Anywhere with Python, `pip install libclang` and
//! `LIBCLANG_PATH=<site-packages>/clang/native` do.
//!
//! ## libtorch and crates without the internet
//!
//! Nodes of a cluster often have no way to the internet; login nodes may have one. Nothing is
//! downloaded by the build if libtorch is there, by one of:
//!
//! - `LIBTORCH=<folder>`: libtorch, unpacked, of the [version](https://github.com/LaurentMazare/tch-rs)
//!   that tch needs: 2.11 for tch 0.24. Download `libtorch-shared-with-deps` for CPUs from pytorch.org
//!   elsewhere, and copy it. For a program on GPUs take the larger file, for CUDA, and see
//!   [devices](super::devices#building).
//! - `LIBTORCH_USE_PYTORCH=1`: the PyTorch of the `python3` on `PATH`, or of the virtual environment that
//!   is active, again of that version (*site*: often a module). `LIBTORCH_BYPASS_VERSION_CHECK=1` lets
//!   other versions through. They may fail to compile.
//!
//! `cargo fetch` on a login node, or `cargo vendor` elsewhere, brings the crates, and then
//! `cargo build --offline` compiles on any node. Compile where the CPUs are those of the compute nodes if
//! you set `-C target-cpu=native`.
//!
//! ## Libraries at run time
//!
//! A program that `cargo run` starts finds libtorch and MPI. One that a launcher starts needs their
//! folders in itself, by the `build.rs` that the README shows, or in `LD_LIBRARY_PATH`. Both must be on a
//! file system that all nodes see, under the same path. On most systems the loader looks in
//! `LD_LIBRARY_PATH` first, so that a module which is loaded when the program starts decides which MPI it
//! gets: load the same as for the build. `ldd my-program` shows what is loaded.
//!
//! # Starting
//!
//! The launcher must speak to the MPI that the program is compiled for. If it does not, each rank is
//! alone in a world of size 1, computes something else, and would not notice; so
//! [`initialize`](crate::initialize) refuses such a world, and names the right launcher.
//!
//! ## Slurm
//!
//! `srun --mpi=list` shows the protocols that the site's `srun` has (*site*), and `--mpi` chooses one:
//!
//! | MPI | `srun --mpi=` |
//! | --- | --- |
//! | Open MPI 5 | `pmix` |
//! | Open MPI 4 | `pmix`, or `pmi2` if it was built with that |
//! | MPICH, MVAPICH | `pmi2`; `pmix` if it was built with that |
//! | Intel MPI | `pmi2`, with `I_MPI_PMI_LIBRARY` set to Slurm's `libpmi2.so` |
//! | Cray MPICH | `cray_shasta`, mostly the site's default |
//!
//! A script for `sbatch`:
//!
//! ```sh
//! #!/bin/bash
//! #SBATCH --nodes=2
//! #SBATCH --ntasks-per-node=4
//! #SBATCH --cpus-per-task=8
//! #SBATCH --time=00:30:00
//! module load openmpi                             # as for the build
//! export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK     # threads of libtorch
//! export MPI4TCH_TIMEOUT=600                      # a hang ends the job, and is explained
//! srun --mpi=pmix --kill-on-bad-exit=1 \
//!     --cpus-per-task=$SLURM_CPUS_PER_TASK --cpu-bind=cores my-program
//! ```
//!
//! With `--kill-on-bad-exit=1`, or `SLURM_KILL_BAD_EXIT=1`, `srun` ends all ranks as soon as one exits with
//! a code other than 0. Without it, and with `KillOnBadExit=0`, Slurm's default, in the site's `slurm.conf`
//! (*site*: `scontrol show config`), ranks may wait for one that is gone until the time of the job is used
//! up. This was seen with the versions above, while one rank waited in `all_reduce`:
//!
//! | without the option | Open MPI, `pmix` | MPICH or Intel MPI, `pmi2` |
//! | --- | --- | --- |
//! | a rank returns an error to [`run`](crate::run) | all end | all end |
//! | a rank reaches `MPI4TCH_TIMEOUT`, and another is in no call | all end, but if the first is alone on its node, the other goes on | all end |
//! | a rank calls `std::process::exit(3)` | all end, but if it is alone on its node, the others wait on | the others wait on |
//!
//! With the option, all ranks ended in each case that was tried. For a rank that it kills Slurm counts the
//! exit code 137 or 143, so that `srun` mostly returns one of these, and not 124, if
//! `MPI4TCH_TIMEOUT` ends the job. What the ranks have printed tells the reason.
//!
//! Since Slurm 22.05, `srun` no longer takes `--cpus-per-task` from the script, so it stands there
//! twice. Within an allocation, Open MPI's and MPICH's own `mpiexec -n 8 my-program` start ranks on its
//! nodes too, if they were built for Slurm (*site*). `srun` passes the environment on to all ranks.
//!
//! ## PBS, and other schedulers
//!
//! ```sh
//! #!/bin/bash
//! #PBS -l select=2:ncpus=32:mpiprocs=4:ompthreads=8
//! #PBS -l walltime=00:30:00
//! cd "$PBS_O_WORKDIR"
//! module load openmpi
//! mpiexec -n 8 --map-by ppr:4:node:PE=8 my-program
//! ```
//!
//! If `mpiexec` does not know the scheduler (*site*), all ranks are on the first node, which the first
//! program shows. Then `--hostfile $PBS_NODEFILE`, or MPICH's `-f $PBS_NODEFILE`, tells it the nodes.
//!
//! ## Host files
//!
//! Without a scheduler, a file lists the hosts. The launcher reaches them by `ssh`, which must ask no
//! password, and the program is at the same path on all of them.
//!
//! | | the file | the command | environment variables |
//! | --- | --- | --- | --- |
//! | Open MPI | `node01 slots=8` | `mpiexec --hostfile hosts -n 16 my-program` | reach other hosts by `-x MPI4TCH_TIMEOUT -x OMP_NUM_THREADS` |
//! | MPICH | `node01:8` | `mpiexec -f hosts -n 16 my-program` | all reach all hosts |
//!
//! If a rank lacks a variable that others have: for `MPI4TCH_CHECK` the strictest setting holds on all,
//! `MPI4TCH_TRACE` on one rank is enough, and `MPI4TCH_TIMEOUT` and `MPI4TCH_NOTICE` count for the ranks
//! that have them.
//!
//! ## Ranks, cores and threads
//!
//! The operations of libtorch use several threads in each rank. How many they take by themselves depends
//! on the launcher: under `srun`, one for each core that the rank is bound to; under the `mpiexec` of Open
//! MPI and of MPICH, one in all, because MKL, which is a part of libtorch, looks for their variables. So
//! say how many:
//!
//! - `OMP_NUM_THREADS=8` for all ranks, or `tch::set_num_threads(8)` at the start of the program.
//!   With fewer cores than ranks times threads, threads wait for each other. If there are more ranks than
//!   cores, as on a desktop, take 1.
//! - Each rank must be bound to as many cores as it has threads.
//!
//! | launcher | ranks of 8 cores each |
//! | --- | --- |
//! | `srun` | `--cpus-per-task=8 --cpu-bind=cores` |
//! | Open MPI | `--map-by slot:PE=8 --bind-to core`; `--report-bindings` shows the result |
//! | MPICH | `-bind-to core:8`; it does not bind by itself |
//!
//! Ranks that wait for a message look for it without pause, and keep a core busy. With more ranks than
//! cores that is slow: set `OMPI_MCA_mpi_yield_when_idle=1` for Open MPI, or
//! `I_MPI_WAIT_MODE=1 I_MPI_THREAD_YIELD=3` for Intel MPI.
//!
//! # Containers
//!
//! There are two ways, and both need an MPI in the container that fits the host's:
//!
//! - **The MPI of the container.** The host's launcher starts the container once per rank:
//!   `srun --mpi=pmix apptainer exec image.sif my-program`. The two speak by PMIx or PMI only, so that it is
//!   enough that the container's MPI supports what `srun` was told. It must also have been built for the
//!   cluster's network; otherwise messages go by TCP, or not at all (*site*).
//! - **The MPI of the host.** Its folder is mounted in the container and is first in `LD_LIBRARY_PATH`, so
//!   that the program loads it in place of the one that it was compiled for. That works if both have the
//!   same ABI: MPICH from 3.1 on, Intel MPI, MVAPICH from 2 on, and Cray MPICH with the module
//!   `cray-mpich-abi` have one (`libmpi.so.12`), Open MPI from 4.0 on another (`libmpi.so.40`). A program
//!   that is compiled for MPICH in the container runs with the Intel MPI of the host, say, but never with an
//!   Open MPI. With the feature `abi` of this crate it is compiled for the ABI of the MPI standard
//!   (`libmpi_abi.so`), and runs with every MPI that has that, as MPICH 5 and Intel MPI 2021.19 do.
//!
//! With the ABI of the other family, the loader or [`initialize`](crate::initialize) refuses: see
//! [below](#errors-at-the-start). A library of the same family, but of another version, is accepted, and
//! [`Library::version`](crate::Library::version) says which it is.
//!
//! Containers also restrict what ranks of one node may do. Open MPI 4 copies large messages from process
//! to process by the system call `process_vm_readv`. Where it is forbidden, Docker's `--cap-add=SYS_PTRACE`
//! allows it, and `OMPI_MCA_btl_vader_single_copy_mechanism=none` does without it. Shared memory is in
//! `/dev/shm`, of which Docker gives 64 MB: `--shm-size=1g`, or `--ipc=host`. As root, Open MPI's `mpiexec`
//! wants `OMPI_ALLOW_RUN_AS_ROOT=1` and `OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1`.
//!
//! # Errors at the start
//!
//! When the program is built:
//!
//! | the text | the reason, and what to do |
//! | --- | --- |
//! | `mpi4tch-sys: no MPI was found. Tried: …` | none of the places has an `mpi.h` that can be compiled and linked. The text lists each with its reason: load a module, or set `MPI4TCH_MPI` |
//! | `the mpiexec on PATH, …, belongs to …, which cannot be bound` | the launcher is there, but not the headers or the compiler wrapper of its MPI: load the module that has them, or choose another MPI by `MPI4TCH_MPI` |
//! | `… lacks the ABI of the MPI standard, which the feature abi needs: …` | that MPI is older than the ABI: choose another by `MPI4TCH_MPI`, or build without the feature |
//! | `bindgen needs libclang to read mpi.h` | set `LIBCLANG_PATH` |
//! | `LIBTORCH is …`, `Cannot find a libtorch install` | `LIBTORCH` names no libtorch, or a version that tch cannot use, or is not set |
//! | errors of the C++ compiler in `torch-sys`, such as `'align_tensors' is not a member of 'torch'` | libtorch and tch are of different versions: 2.11 goes with tch 0.24, 2.13 with tch 0.26. `cargo tree -p tch` prints which one cargo has chosen, `cargo update -p tch --precise 0.24.0` chooses another |
//!
//! When it is started:
//!
//! | the text | the reason, and what to do |
//! | --- | --- |
//! | `error while loading shared libraries: libmpi.so.40`, or `libtorch_cpu.so` | the loader does not find the folder, see [above](#libraries-at-run-time) |
//! | `error while loading shared libraries: libmpi_abi.so` | the program was built with the feature `abi`, and the MPI that is to be loaded lacks that library, or the loader does not find its folder |
//! | ``version `GLIBC_2.28' not found`` | the system is older than libtorch 2.11 needs: a newer container |
//! | `undefined symbol: OMPI_…`, or `undefined symbol: ompi_…` | the program is compiled for Open MPI, and the `libmpi.so.40` that was loaded is none. Mend `LD_LIBRARY_PATH` |
//! | `initialize: compiled against mpich (…), but Open MPI … was loaded, and their ABIs differ` | the same the other way round, or build for the MPI that is loaded |
//! | `initialize: SLURM_STEP_NUM_TASKS says that 4 ranks were started, but each is alone in its world` | `srun` and MPI share no protocol: try `srun --mpi=pmix` or `pmi2`. With `OMPI_COMM_WORLD_SIZE` or `PMI_SIZE` in place of that variable, the `mpiexec` of another MPI started the program. The text names the right one. `MPI4TCH_ALLOW_SINGLETONS=1` is for programs that want to be alone |
//! | `The application appears to have been direct launched using "srun", but OMPI was not built with SLURM's PMI support` | Open MPI 4 has noticed the same by itself |
//! | `There are not enough slots available in the system` | Open MPI has fewer cores than ranks: ask for more, or say `--oversubscribe` |
//! | `initialize: MPI4TCH_TIMEOUT is "soon"; it may be a number of seconds above 0` | this rank's setting is invalid. The other ranks say `refused: initialize: a setting on rank 1` |
//! | `initialize: called from a thread that may not call MPI` | MPI was initialized on another thread, or, by another library, so that only the main thread may call it: call [`initialize`](crate::initialize) there |
//! | `initialize: MPI has been finalized` | MPI cannot be started twice in a process |
//!
//! # A program that hangs
//!
//! A rank that has waited in one call for a minute prints where. Set `MPI4TCH_NOTICE=5` to be told after 5
//! seconds, and `MPI4TCH_TIMEOUT=60` in scripts, so that a hang ends the job, with the exit code 124 ([under
//! `srun`](#slurm) mostly another), and does not use up its time. In this program the loss of rank 1 does not
//! depend on y:
//!
//! ```no_run
//! # use mpi4tch::{Op, Universe};
//! # use tch::{Device, Kind, Tensor};
//! # fn program(universe: &Universe) -> mpi4tch::Result<()> {
//! let world = universe.world();
//! let x = Tensor::ones([3], (Kind::Double, Device::Cpu)).set_requires_grad(true);
//! let y = world.all_reduce(&x, Op::Sum)?;
//! let loss = if world.rank() == 0 { y.sum(Kind::Double) } else { x.sum(Kind::Double) };
//! loss.f_backward()?;
//! # Ok(())
//! # }
//! ```
//!
//! With `MPI4TCH_TIMEOUT=2 mpiexec -n 2 my-program` it ends and says, among other lines:
//!
//! ```text
//! mpi4tch: rank 0 of 2 has waited 2.0 s in all_reduce at src/main.rs:13:19 in the backward pass, its call 4
//! mpi4tch: rank 1 of 2 has waited 2.0 s in finalize at src/main.rs:7:5, its call 5
//! mpi4tch: rank 0 ends the job: MPI4TCH_TIMEOUT is 2 s; ranks that have said nothing are in no call
//! ```
//!
//! So rank 0 waits for the adjoint of the `all_reduce`, and rank 1 has finished its backward pass without
//! it: a [dead branch](crate::guide#the-program-hangs-or-the-gradient-lacks-a-part-a-dead-branch), which a
//! [`Tape`](crate::Tape) makes harmless. Further:
//!
//! - `MPI4TCH_CHECK=collective`, the default in debug builds, compares more of the calls than release
//!   builds do, and may turn a hang or a wrong result into an error: see
//!   [what is compared](crate#checks-across-ranks).
//! - A rank that prints nothing is in no call of this crate. A debugger shows where it is:
//!   `gdb -p <pid> -batch -ex 'thread apply all bt'` on its node, or `srun --jobid=<id> --overlap` with that
//!   command.
//! - `MPI4TCH_TRACE` (below) leaves a file per rank if the job ends otherwise; its last lines are the last
//!   calls.
//! - Run it on fewer ranks, or on one node: a hang that depends on the node is one of the network (*site*).
//!
//! # A program that is slow
//!
//! - `MPI4TCH_TRACE=<folder>` writes a [timeline](crate#timelines) of all ranks, with the time that each
//!   waited for others. Look there first: it shows whether the ranks compute, communicate or wait. The
//!   folder must be on a file system that all nodes see.
//! - `perf` shows where a rank computes. Each rank needs a file of its own:
//!
//!   ```sh
//!   mpiexec -n 4 sh -c 'exec perf record -g -o perf.$OMPI_COMM_WORLD_RANK.data my-program'
//!   perf report -i perf.0.data
//!   ```
//!
//!   (`$PMI_RANK` with MPICH, `$SLURM_PROCID` with `srun`.) Build with
//!   `CARGO_PROFILE_RELEASE_DEBUG=line-tables-only RUSTFLAGS='-C force-frame-pointers=yes'`. The site must
//!   allow it. Ranks that wait spin, so that waiting looks like work in MPI.
//! - Tools that count MPI calls by the interface PMPI, such as mpiP, IPM or Score-P, can be loaded before
//!   the program: `mpiexec -n 4 -x LD_PRELOAD=/opt/mpip/lib/libmpiP.so my-program` with Open MPI. They also
//!   see the small messages by which the ranks agree on their calls. To see data only, set
//!   `MPI4TCH_CHECK=none` for that run, which also shows what the checks cost.
//! - Compare with one rank and one thread, then with one rank and all threads of the node: if threads gain
//!   little, take more ranks and fewer threads.
