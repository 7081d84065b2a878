# The machines that Vagrant makes of a Vagrantfile, as JSON. Usage: ruby machines.rb DIRECTORY
require "json"
require "vagrant"

vagrant = Vagrant::Environment.new(cwd: ARGV[0], ui_class: Vagrant::UI::Silent).vagrantfile
machines = vagrant.machine_names.to_h do |name|
  vm = vagrant.machine_config(name, nil, nil)[:config].vm
  private_networks = vm.networks.filter_map { |type, options| options if type == :private_network }
  commands = vm.provisioners.map { |each| { always: each.run.to_s == "always", command: each.config.inline } }
  folders = vm.synced_folders.values.reject { |folder| folder[:disabled] }
  [name, {
    box: vm.box,
    networks: private_networks.map { |options| options[:virtualbox__intnet] },
    libvirt_networks: private_networks.map { |options| options[:libvirt__network_name] },
    folders: folders.to_h { |folder| [folder[:guestpath], folder[:hostpath]] },
    commands: commands,
  }]
end
puts JSON.generate(machines)
